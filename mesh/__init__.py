"""How a service runs and talks: settings, telemetry, servers, channels, errors, deadlines."""
