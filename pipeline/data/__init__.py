"""Files that ship with the package: a sample of molecules and two typefaces. README.md beside this says whose they are."""
