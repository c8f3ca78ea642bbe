"""`python -m digitrec`: the command. Written by hand: nbdev exports no `__main__`."""
from digitrec.cli import app

if __name__ == "__main__":
    app(prog_name="digitrec")
