"""Trained models: files that run no code when they are loaded, cards that describe them, and one champion in use.

In the bucket for artifacts, below `models/<name>/`:
- `<version>/model.skops` and `<version>/card.json`: a model that passed the gate; only the card if it did not pass;
- `champion.json`: the version in use, and all earlier champions;
- `last_training.json`: the data of the last training, so that no model is trained again on the same data.
"""
