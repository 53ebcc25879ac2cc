"""``python -m squeezeattention`` is the ``squeeze`` command."""

from .cli import main

if __name__ == "__main__":
    main()
