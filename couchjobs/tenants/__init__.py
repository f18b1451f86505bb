"""Many tenants on one daemon."""
