"""What was sampled, analysed: stores to tables, policies, comparisons, findings, one result file and its page."""
