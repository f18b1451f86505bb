"""What becomes of jobs that no daemon runs any more: of dead daemons, unconfirmed claims, nobody's, in conflict."""
