"""Questions: each script runs probes on models and draws its figures; the run store, the report, the command line."""
