"""The broker: stores jobs that are pushed, finds queued ones, claims them, runs them, writes what came of them."""
