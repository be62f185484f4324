"""Every asset and what updates it: the map of what starts what.

    seismic.events, leaks.detected --lag--> ALERT_SOURCES ---------------> raise_alerts
    service.requests --lag--> SERVICE_REQUESTS_WAITING ------------------> fan_out_service_requests
    fan_out_service_requests --a key for each message--> SERVICE_REQUEST --> triage_service_request
    triage_service_request --a key for each proposal--> PROPOSAL ---------> execute_decisions
    alerts.raised --a message--> LIVE_BOARD ------------------------------> refresh_live_board

    meter.readings --Kafka Connect--> landing table --offsets landed------> aggregate_meter_readings (@continuous)
    aggregate_meter_readings --> HOURLY_FLOWS ----------------------------> train_leak_model, detect_leaks,
                                                                            publish_dashboard, publish_customer_usage
    train_leak_model --a new champion--> LEAK_MODEL ----------------------> detect_leaks
    detect_leaks --leaks.detected, and--> LEAKS --------------------------> publish_dashboard

Every Dag file imports this module, so it imports nothing heavy.
"""

from airflow.sdk import Asset

from include.streams import lag_watcher
from include.water.consumers import RAISE_ALERTS, TRIAGE_SERVICE_REQUESTS

ALERT_SOURCES = Asset("alert_sources", watchers=[lag_watcher(RAISE_ALERTS)])

SERVICE_REQUESTS_WAITING = Asset("service_requests_waiting", watchers=[lag_watcher(TRIAGE_SERVICE_REQUESTS)])
# Partitioned by "topic-partition-offset": a run for each message.
SERVICE_REQUEST = Asset("service_request")
# Partitioned by decision_id: a run for each proposal that needs a person's approval.
PROPOSAL = Asset("proposal")

# Its watcher uses Airflow's stock trigger and is declared in the Dag file: the import takes more than a second.
LIVE_BOARD = Asset("live_board")

# Published by the standard lane; an event's extra holds the offset ranges and counts of the run.
HOURLY_FLOWS = Asset("hourly_flows")
LEAK_MODEL = Asset("leak_model")
LEAKS = Asset("leaks")
