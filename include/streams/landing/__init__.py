"""The standard lane: claims and processes the records that a Kafka sink lands in Iceberg tables, by offset ranges."""
