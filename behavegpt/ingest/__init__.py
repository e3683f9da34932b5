"""From raw logs to a prepared store: files, columns, times, codes, split; `prepare` is the map."""
