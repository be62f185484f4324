"""The lake: objects, tables and the engine that reads them. It knows no Kafka."""
