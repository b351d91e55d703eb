"""The dashboards: look at a model, change it, and see. Pages of a Streamlit app over the run store and a live model."""
