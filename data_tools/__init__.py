"""From raw text to a memory-mapped, pre-tokenised corpus."""
