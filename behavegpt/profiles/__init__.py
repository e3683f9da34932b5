"""Universal behavioral profiles: members (each ends in UserEmbeddings) and their ensemble, from one
YAML file."""
