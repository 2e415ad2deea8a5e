from spec2seq.cli import main

main()
