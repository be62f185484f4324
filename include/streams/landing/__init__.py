"""The standard lane: claims and processes, by offset ranges, what a Kafka sink has landed in Iceberg tables."""
