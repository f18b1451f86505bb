"""Which daemons live, who has the first right to what, and what a daemon puts right of its own."""
