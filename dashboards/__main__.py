"""`python -m chiasm.dashboards`: what `chiasm dashboard` starts."""

from .serve import main

if __name__ == "__main__":
    main()
