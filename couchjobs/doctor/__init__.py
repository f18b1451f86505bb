"""The doctor: looks over a tenant's databases, says what is wrong, and mends what can be mended."""
