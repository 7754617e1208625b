"""All that a GPU can tell about the library, in two commands of a few minutes each."""
