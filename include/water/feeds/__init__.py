"""Third-party feeds that are polled and put into Kafka."""
