"""Networks: opened with their weights and preprocessing, their head found, their stages named."""
