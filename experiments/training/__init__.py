"""Training one model: settings, the loop, and what survives a stop."""
