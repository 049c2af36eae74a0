"""What each command of ``dps`` does: its options, what is checked before anything heavy is imported, what it prints."""
