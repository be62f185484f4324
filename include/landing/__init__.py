"""The standard lane: what a Kafka sink has landed in Iceberg tables, claimed and processed by offset ranges."""
