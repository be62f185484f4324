"""From events to alerts: the thresholds, the rules, and the effect that writes and announces an alert."""
