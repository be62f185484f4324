"""The library: Kafka topics, consumers, landed topics and what they share. It knows no topic by name."""
