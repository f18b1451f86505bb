"""Which daemons live, and which part of the work each of them has the first right to."""
