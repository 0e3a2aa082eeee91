"""Building shards: tasks that turn plan lines into shards, executors that run them, and the step that completes a directory."""
