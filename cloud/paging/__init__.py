"""When devices should ask for pages: learned from those that asked at random."""
