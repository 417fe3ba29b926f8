"""From a query to candidates in cloud order, by stages that one TOML file names."""
