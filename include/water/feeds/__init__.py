"""Third-party feeds that are polled and published to Kafka."""
