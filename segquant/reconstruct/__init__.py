"""Learn roundings block by block (AdaRound, BRECQ)."""
