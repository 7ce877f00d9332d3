"""Records of a cluster's metrics: CSV files, a JSON file of its plans, text for Prometheus."""
