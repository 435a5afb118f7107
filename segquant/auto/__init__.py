"""Let every layer choose among methods within a budget."""
