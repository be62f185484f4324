"""Objects in buckets, Iceberg tables, and the DuckDB engine that reads them. This package does not know Kafka."""
