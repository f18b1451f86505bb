"""The scheduler: knows the triggers, and fires them by the clock and by the changes of documents."""
