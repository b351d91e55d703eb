"""The script of a window, in a folder of its own: beside a folder `pages` Streamlit would run the modules in that one itself."""
