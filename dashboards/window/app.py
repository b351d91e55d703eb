"""What Streamlit runs for every window, at every change of a control."""

from chiasm.dashboards.frame import draw

draw()
