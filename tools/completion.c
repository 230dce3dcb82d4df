/* SPDX-License-Identifier: MIT */
/*
 * tools/completion.c - `varve completion`: the grammar of `varve img` and `varve io`, for shells and for the manual
 *
 * Made from the tables that the parser reads (options.h): bash, zsh and fish complete what is understood, and the page
 * docs/guide/grammar.md lists it.
 */
#include <string.h>

#include "img.h"
#include "io.h"

static bool has_letter(const struct option_row *row)
{
	return row->id > 0 && row->id < 256;
}

/* A value in an argument of its own, or behind '='; not the one that may be left out. */
static bool needs_value(const struct option_row *row)
{
	return row->arg && *row->arg != '=';
}

static void print_words(const struct command *c)
{
	for (const struct option_row *row = c->options; row->id; row++) {
		if (has_letter(row))
			printf(" -%c", row->id);
		if (row->name)
			printf(" --%s", row->name);
	}
	printf(" -h --help --errors");
}

static void print_name(const struct io_command *c)
{
	printf(" %s", c->c.name);
}

/* ---- bash ---- */

static void bash(void)
{
	printf("# bash completion for varve, qemu-img and qemu-io; made by: varve completion bash\n"
	       "_varve_io()\n{\n\tif [[ ${COMP_WORDS[COMP_CWORD]} == -* ]]; then\n"
	       "\t\tCOMPREPLY=($(compgen -W \"");
	print_words(&cmd_io);
	printf("\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
	       "\telif [[ ${COMP_WORDS[COMP_CWORD-1]} == -c || ${COMP_WORDS[COMP_CWORD-1]} == --cmd ]]; then\n"
	       "\t\tCOMPREPLY=($(compgen -W \"");
	io_each(print_name);
	printf("\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
	       "\telse\n\t\tCOMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))\n\tfi\n}\n"
	       "_varve_img()\n{\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} at=1 words\n"
	       "\t[[ ${COMP_WORDS[0]##*/} == varve ]] && at=2\n"
	       "\tif (( COMP_CWORD == at )); then\n"
	       "\t\tCOMPREPLY=($(compgen -W \"");
	for (const struct command *const *c = img_commands; *c; c++)
		printf("%s%s", c == img_commands ? "" : " ", (*c)->name);
	printf("\" -- \"$cur\"))\n\t\treturn\n\tfi\n"
	       "\tcase ${COMP_WORDS[at]} in\n");
	for (const struct command *const *c = img_commands; *c; c++) {
		printf("\t%s) words=\"", (*c)->name);
		print_words(*c);
		printf("\" ;;\n");
	}
	printf("\t*) return ;;\n\tesac\n"
	       "\tif [[ $cur == -* ]]; then\n"
	       "\t\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
	       "\telse\n\t\tCOMPREPLY=($(compgen -f -- \"$cur\"))\n\tfi\n}\n"
	       "_varve()\n{\n"
	       "\tif (( COMP_CWORD == 1 )); then\n"
	       "\t\tCOMPREPLY=($(compgen -W \"img io serve daemon vmstate blkload crashtest completion\" -- \"${COMP_WORDS[1]}\"))\n"
	       "\telif [[ ${COMP_WORDS[1]} == img ]]; then\n\t\t_varve_img\n"
	       "\telif [[ ${COMP_WORDS[1]} == io ]]; then\n\t\t_varve_io\n"
	       "\telse\n\t\tCOMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))\n\tfi\n}\n"
	       "complete -o filenames -F _varve varve\n"
	       "complete -o filenames -F _varve_img qemu-img\n"
	       "complete -o filenames -F _varve_io qemu-io\n");
}

/* ---- zsh ---- */

/* In single quotes, within brackets: what would end them is left out of the words, which are our own. */
static void print_zsh_text(const char *text)
{
	for (; *text; text++) {
		if (*text == '\'')
			printf("'\\''");
		else if (*text == '[' || *text == ']' || *text == ':')
			printf("\\%c", *text);
		else
			putchar(*text);
	}
}

static void print_zsh_option(const struct option_row *row, bool letter)
{
	printf("\t\t\t'*%s", letter ? "-" : "--");
	if (letter)
		putchar(row->id);
	else
		printf("%s%s", row->name, needs_value(row) ? "=" : row->arg ? "=-" : "");
	putchar('[');
	print_zsh_text(row->what ? row->what : "");
	putchar(']');
	if (row->arg) {
		printf("%s", *row->arg == '=' && !letter ? "::" : ":");
		print_zsh_text(row->arg + (*row->arg == '='));
		printf(":_files");
	}
	printf("' \\\n");
}

static void print_zsh_options(const struct command *c)
{
	for (const struct option_row *row = c->options; row->id; row++) {
		/* The value that may be left out is never behind a letter. */
		if (has_letter(row) && (!row->arg || needs_value(row)))
			print_zsh_option(row, true);
		else if (has_letter(row))
			printf("\t\t\t'*-%c' \\\n", row->id);
		if (row->name)
			print_zsh_option(row, false);
	}
}

static void zsh(void)
{
	printf("#compdef varve qemu-img qemu-io\n# zsh completion; made by: varve completion zsh\n"
	       "_varve_img()\n{\n"
	       "\tlocal -a commands\n\tcommands=(\n");
	for (const struct command *const *c = img_commands; *c; c++) {
		printf("\t\t'%s:", (*c)->name);
		print_zsh_text((*c)->what);
		printf("'\n");
	}
	printf("\t)\n\tif (( CURRENT == 2 )); then\n\t\t_describe command commands\n\t\treturn\n\tfi\n"
	       "\tlocal command=$words[2]\n\tshift words\n\t(( CURRENT-- ))\n\tcase $command in\n");
	for (const struct command *const *c = img_commands; *c; c++) {
		printf("\t%s)\n\t\t_arguments \\\n", (*c)->name);
		print_zsh_options(*c);
		printf("\t\t\t'*:file:_files'\n\t\t;;\n");
	}
	printf("\tesac\n}\n_varve_io()\n{\n\t_arguments \\\n");
	print_zsh_options(&cmd_io);
	printf("\t\t\t'*:file:_files'\n}\n"
	       "if [[ $service == varve ]]; then\n"
	       "\tif (( CURRENT == 2 )); then\n"
	       "\t\tcompadd img io serve daemon vmstate blkload crashtest completion\n"
	       "\telif [[ $words[2] == img || $words[2] == io ]]; then\n\t\tshift words\n\t\t(( CURRENT-- ))\n\t\t_varve_$words[1]\n"
	       "\telse\n\t\t_files\n\tfi\nelif [[ $service == qemu-io ]]; then\n\t_varve_io\nelse\n\t_varve_img\nfi\n");
}

/* ---- fish ---- */

static void print_fish_text(const char *text)
{
	putchar('\'');
	for (; *text; text++) {
		if (*text == '\'' || *text == '\\')
			putchar('\\');
		putchar(*text);
	}
	putchar('\'');
}

static void fish_options(const struct command *c, const char *program, const char *when)
{
	for (const struct option_row *row = c->options; row->id; row++) {
		printf("complete -c %s%s", program, when);
		if (has_letter(row))
			printf(" -s %c", row->id);
		if (row->name)
			printf(" -l %s", row->name);
		if (needs_value(row))
			printf(" -r");
		printf(" -d ");
		print_fish_text(row->what ? row->what : "");
		putchar('\n');
	}
}

static void fish_for(const char *program, const char *none, const char *under)
{
	char when[256];

	for (const struct command *const *c = img_commands; *c; c++) {
		printf("complete -c %s -n '%s' -a %s -d ", program, none, (*c)->name);
		print_fish_text((*c)->what);
		putchar('\n');
		snprintf(when, sizeof(when), " -n '%s__fish_seen_subcommand_from %s'", under, (*c)->name);
		fish_options(*c, program, when);
	}
}

static void fish(void)
{
	printf("# fish completion; made by: varve completion fish\n"
	       "complete -c varve -n __fish_use_subcommand -a 'img io serve daemon vmstate blkload crashtest completion'\n");
	fish_for("varve", "__fish_seen_subcommand_from img; and test (count (commandline -opc)) -eq 2",
		 "__fish_seen_subcommand_from img; and ");
	fish_for("qemu-img", "__fish_use_subcommand", "");
	fish_options(&cmd_io, "varve", " -n '__fish_seen_subcommand_from io'");
	fish_options(&cmd_io, "qemu-io", "");
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

int completion_main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*print)(void);
	} forms[] = { { "bash", bash }, { "zsh", zsh }, { "fish", fish }, { "markdown", markdown } };

	if (argc == 2 && (strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "--help") == 0)) {
		printf("Usage: %s bash|zsh|fish|markdown\n\nPrints what the shell needs to complete the commands of varve img and varve io, or\n"
		       "their grammar as a page.\n",
		       prog);
		return finish_stdout();
	}
	for (size_t i = 0; argc == 2 && i < ARRAY_LEN(forms); i++) {
		if (strcmp(argv[1], forms[i].name) == 0) {
			forms[i].print();
			return finish_stdout();
		}
	}
	return complain_usage("one of bash, zsh, fish, markdown is needed");
}
