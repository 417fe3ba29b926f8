"""The stages that change the order of ranked candidates with regard to each other, such as limits per category."""
