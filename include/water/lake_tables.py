"""The lake's tables that this example writes, besides the landing tables, which Kafka Connect writes."""

from include.streams.landing.tables import clean_table
from include.water.flows.tables import TABLES
from include.water.topics import METER_READINGS
from include.water.usage.tables import CUSTOMER_DAYS

WRITTEN = (clean_table(METER_READINGS), *TABLES, CUSTOMER_DAYS)
