FROM astrocrpublic.azurecr.io/runtime:3.3-8-python-3.12
