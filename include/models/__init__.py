"""Trained models: files that run no code when they are loaded, cards that say what they are, and one champion in use.

In the bucket for artifacts, below `models/<name>/`:
- `<version>/model.skops` and `<version>/card.json`: a model that passed the gate; of one that did not, the card alone;
- `champion.json`: which version is in use, and every one that was;
- `last_training.json`: the data of the last training, so that the same data are not trained on again.
"""
