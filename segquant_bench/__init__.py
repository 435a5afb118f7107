"""The benchmark around segquant, as a package: this repository's folders pipelines/, eval/ and conf/.

The folders keep their names; here they are links, and in a wheel copies, so that no package called `eval` or
`pipelines` lands in anybody's environment.
"""
