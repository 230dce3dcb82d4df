/* SPDX-License-Identifier: MIT */
/*
 * tools/completion.c - `varve completion`: scripts for shells; the grammar of `varve img` and `varve io` as a page
 *
 * The page docs/guide/grammar.md is made from the tables that the parser reads (options.h). The scripts hold no word of it: they
 * ask, see complete.h.
 */
#include <string.h>

#include "complete.h"
#include "img.h"
#include "io.h"

static bool has_letter(const struct option_row *row)
{
	return row->id > 0 && row->id < 256;
}

/* ---- scripts: they ask what stands at the cursor; all that they know is how their shell wants the answer ---- */

static void names(const char *between)
{
	const char *name, *what;

	fputs("varve", stdout);
	for (unsigned i = 0; (name = tool_name(i, true, &what)); i++)
		printf("%s%s", *name ? between : "", name);
}

static void bash(void)
{
	printf("# bash completion for varve and its links; made by: varve completion bash\n"
	       "_varve()\n{\n"
	       "\tlocal LC_ALL=C # the cursor is counted in bytes\n"
	       "\tlocal -a out\n"
	       "\tmapfile -t out < <(varve completion line \"${COMP_LINE:0:COMP_POINT}\" \"${COMP_LINE:COMP_POINT}\" \"$COMP_WORDBREAKS\" 2>/dev/null)\n"
	       "\tCOMPREPLY=(\"${out[@]:1}\")\n"
	       "\tcase ${out[0]} in\n"
	       "\tfiles) compopt -o default ;;\n"
	       "\tnospace) compopt -o nospace ;;\n"
	       "\tesac\n}\n"
	       "complete -F _varve ");
	names(" ");
	putchar('\n');
}

static void zsh(void)
{
	printf("#compdef ");
	names(" ");
	printf("\n# zsh completion for varve and its links; made by: varve completion zsh\n"
	       "local line kind text\n"
	       "local -a whole part whole_says part_says\n"
	       "local -i files\n"
	       "for line in \"${(@f)$(varve completion words $CURRENT \"${(@Q)words[1,CURRENT-1]}\" \"${(Q)PREFIX}\" \"${(@Q)words[CURRENT+1,-1]}\" 2>/dev/null)}\"; do\n"
	       "\tkind=$line[1] text=${line[2,-1]%%%%$'\\t'*} line=${line[2,-1]/$'\\t'/  -- }\n"
	       "\tcase $kind in\n"
	       "\t(w) whole+=(\"$text\") whole_says+=(\"$line\") ;;\n"
	       "\t(p) part+=(\"$text\") part_says+=(\"$line\") ;;\n"
	       "\t(f) files=1 ;;\n"
	       "\tesac\n"
	       "done\n"
	       "(( $#whole )) && compadd -l -d whole_says -a whole\n"
	       "(( $#part )) && compadd -l -S '' -d part_says -a part\n"
	       "(( files )) && _files\n");
}

static void fish(void)
{
	printf("# fish completion for varve and its links; made by: varve completion fish\n"
	       "function __varve_complete\n"
	       "\tset -l before (commandline -opc)\n"
	       "\tset -l all (commandline -op)\n"
	       "\tset -l at (math 1 + (count $before))\n"
	       "\tset -l from (math 1 + $at)\n"
	       "\t# with a quote that is open, the word without it, to its end\n"
	       "\tset -l now (string unescape -- (commandline -ct)); or set now $all[$at]\n"
	       "\tvarve completion words $at $before \"$now\" $all[$from..] 2>/dev/null | while read -l line\n"
	       "\t\tif test \"$line\" = f\n"
	       "\t\t\t__fish_complete_path (commandline -ct)\n"
	       "\t\telse\n"
	       "\t\t\tstring sub -s 2 -- $line\n"
	       "\t\tend\n"
	       "\tend\n"
	       "end\n"
	       "for name in ");
	names(" ");
	printf("\n\tcomplete -c $name -f -a '(__varve_complete)'\nend\n");
}

/* "wTEXT\tDESCRIPTION", p: more of the word follows; "f": files */
static void print_offer(void *arg, enum offer_kind kind, const char *text, const char *what)
{
	(void)arg;
	printf("%c%s%s%s\n", kind == OFFER_WORD ? 'w' : kind == OFFER_PART ? 'p' : 'f', text, what ? "\t" : "", what ? what : "");
}

/* ---- the page of the manual ---- */

static void print_markdown_text(const char *text)
{
	for (; *text; text++) {
		if (strchr("|<>*_\\", *text))
			putchar('\\');
		putchar(*text);
	}
}

static void markdown_rows(const struct command *c)
{
	printf("\n\n| option | | value | |\n|---|---|---|---|\n");
	for (const struct option_row *row = c->options; row->id; row++) {
		if (has_letter(row))
			printf("| `-%c` ", row->id);
		else
			printf("| ");
		printf("| %s%s%s | ", row->name ? "`--" : "", row->name ? row->name : "", row->name ? "`" : "");
		print_markdown_text(row->arg ? row->arg : "");
		printf(" | ");
		print_markdown_text(row->what ? row->what : "");
		printf(" |\n");
	}
}

static void markdown_word(const struct io_command *c)
{
	printf("\n### %s%s%s\n", c->c.name, c->alt ? ", " : "", c->alt ? c->alt : "");
	print_markdown_text(c->c.what);
	printf(": `%s", c->c.name);
	command_letters(&c->c);
	printf("%s%s`", *c->c.args ? " " : "", c->c.args);
	if (c->c.options->id)
		markdown_rows(&c->c);
	else
		printf("\n");
}

static void markdown_options(const struct varve_option_info *o)
{
	printf("| option | value | |\n|---|---|---|\n");
	for (; o->name; o++) {
		printf("| `%s` | ", o->name);
		print_markdown_text(o->value);
		printf(" | ");
		print_markdown_text(o->what);
		printf(" |\n");
	}
}

/* Image options: those of drivers that have a table of them. */
static void markdown_drivers(void)
{
	const struct varve_option_info *o;
	const char *name;

	printf("\n## Options of images\nWith `--image-opts driver=NAME,...`, `json:{...}`, `varve io open -o` and `varve daemon --blockdev`. varve(1) says\n"
	       "more.\n\n### Every disk\n");
	markdown_options(varve_driver_open_options(NULL));
	for (unsigned i = 0; (name = varve_driver_name(i)); i++) {
		o = varve_driver_open_options(name);
		if (!o)
			continue;
		printf("\n### driver=%s\n", name);
		markdown_options(o);
	}
}

static void markdown(void)
{
	printf("# Grammar of varve img and varve io\n\n"
	       "Made from the tables of the option parser by `varve completion markdown`; a test compares.\n"
	       "Options and names may come in any order, `--` ends the options, a long name may be shortened as long as one is meant.\n"
	       "Every command has `-h`, `--help` and `--errors=text|json`. varve-img(1) says what the commands do.\n");
	for (const struct command *const *c = img_commands; *c; c++) {
		printf("\n## %s\n", (*c)->name);
		print_markdown_text((*c)->what);
		printf(": `%s [OPTION]... %s`", (*c)->name, (*c)->args);
		markdown_rows(*c);
	}
	printf("\n## varve io\n");
	print_markdown_text(cmd_io.what);
	printf(": `varve io [OPTION]... %s`", cmd_io.args);
	markdown_rows(&cmd_io);
	printf("\n## Commands of varve io\nOne line each, from `-c` or standard input. varve-io(1) says more.\n");
	io_each(markdown_word);
	markdown_drivers();
}

static const struct {
	const char *name;
	void (*print)(void);
} forms[] = { { "bash", bash }, { "zsh", zsh }, { "fish", fish }, { "markdown", markdown } };

static const struct option_row completion_options[] = { OPTION_END };

/* `line BEFORE AFTER BREAKS` and `words NUMBER WORD...` are for the scripts: what may stand at the cursor, in the word of that number. */
const struct command cmd_completion = {
	.name = "",
	.what = "prints the completion of a shell, or the grammar as a page",
	.args = "bash|zsh|fish|markdown",
	.options = completion_options,
};

int completion_main(int argc, char **argv)
{
	struct parse p;
	unsigned nr;

	if (argc == 5 && strcmp(argv[1], "line") == 0)
		return complete_line(argv[2], argv[3], argv[4]);
	if (argc > 3 && strcmp(argv[1], "words") == 0) {
		if (parse_unsigned(argv[2], (unsigned)argc - 3, &nr) < 0 || !nr)
			return complain_usage("words: '%s' is not the number of the word under the cursor", argv[2]);
		complete_words(print_offer, NULL, (int)nr, argv + 3, argc - 3 - (int)nr);
		return finish_stdout();
	}
	parse_start(&p, &cmd_completion, argc, argv);
	if (parse_next(&p) < 0)
		return p.status;
	for (size_t i = 0; p.nr_args == 1 && i < ARRAY_LEN(forms); i++) {
		if (strcmp(p.args[0], forms[i].name) == 0) {
			forms[i].print();
			return finish_stdout();
		}
	}
	return complain_usage("one of bash, zsh, fish, markdown is needed");
}
