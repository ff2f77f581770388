"""Pictures of what pruning kept, merged and dropped: pure functions of a report and pictures."""
