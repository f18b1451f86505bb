"""When a job should exist. Pure: the present time is an argument, nothing here touches the network."""
