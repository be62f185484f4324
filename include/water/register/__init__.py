"""Sites and customers as files that somebody else drops below a prefix of the artifacts bucket."""
