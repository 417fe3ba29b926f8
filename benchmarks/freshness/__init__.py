"""How long it takes until what users do, and what editors put, changes pages."""
