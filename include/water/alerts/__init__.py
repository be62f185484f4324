"""From events to alerts: thresholds, rules, and the effect that writes and announces an alert."""
