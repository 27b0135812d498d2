/* stdio on sockets, and sockets as the standard streams of programs that are started in every way there is. A client and
 * a server in one program; the server's end is what is played with. Prints lines that are the same whoever serves. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sockaddr_in address;
static int listener;
static const char *self;

static void fail(const char *what)
{
    printf("%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Two ends of a connection. */
static void pair(int *client, int *server)
{
    *client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(*client, (void *)&address, sizeof address) != 0)
        fail("connect");
    *server = accept(listener, NULL, NULL);
    if (*server < 0)
        fail("accept");
}

/* All that comes until the end. */
static void show(const char *name, int fd)
{
    static char text[100000];
    size_t len = 0;
    ssize_t n;
    while ((n = read(fd, text + len, sizeof text - 1 - len)) > 0)
        len += n;
    text[len] = 0;
    for (char *c = text; *c; c++)
        if (*c == '\n')
            *c = '|';
    printf("%s: %s%s\n", name, text, n < 0 ? strerror(errno) : "");
    close(fd);
}

static void streams(void)
{
    int c, s;
    pair(&c, &s);
    FILE *in = fdopen(s, "r"), *out = fdopen(dup(s), "w");
    if (!in || !out)
        fail("fdopen");
    printf("fileno %d\n", fileno(in) == s);
    const char *said = "GET / HTTP/1.0\r\nnumber 42 3.5\r\nabcdefgh";
    write(c, said, strlen(said));
    char line[100], rest[9] = "";
    int number;
    double fraction;
    printf("fgets %d\n", fgets(line, sizeof line, in) != NULL && strcmp(line, "GET / HTTP/1.0\r\n") == 0);
    int fields = fscanf(in, "number %d %lf\r\n", &number, &fraction);
    printf("fscanf %d %d %.1f\n", fields, number, fraction);
    int first = getc(in);
    printf("ungetc %d\n", first == 'a' && ungetc(first, in) == 'a');
    printf("fread %zu %s\n", fread(rest, 1, 8, in), rest);
    fprintf(out, "%s %d\n", "answer", 7);
    fputs("puts\n", out);
    putc('c', out);
    for (int i = 0; i < 3000; i++)
        fprintf(out, "%04d ", i);
    printf("ftell %ld\n", ftell(out));
    fflush(out);
    fputs("the end, not flushed", out);
    shutdown(c, SHUT_WR);
    printf("eof %d %d\n", getc(in), feof(in) != 0);
    printf("fclose %d %d\n", fclose(out), fclose(in));
    show("streams", c);

    pair(&c, &s);
    FILE *both = fdopen(s, "r+");
    setvbuf(both, NULL, _IOLBF, 0);
    fputs("line by line\n", both);
    char got[13];
    printf("r+ %zd\n", read(c, got, sizeof got));
    write(c, "back\n", 5);
    printf("getline %d\n", fgets(line, sizeof line, both) != NULL && strcmp(line, "back\n") == 0);
    fclose(both);
    show("r+", c);
    printf("no mode %d\n", fdopen(listener, "x") == NULL && errno == EINVAL);
    printf("closed %d\n", fdopen(999, "r") == NULL && errno == EBADF);
}

static void finish(const char *name, pid_t pid, int c)
{
    int status = -1;
    shutdown(c, SHUT_WR);
    show(name, c);
    waitpid(pid, &status, 0);
    printf("%s ended: %d\n", name, WEXITSTATUS(status));
}

/* As inetd. */
static void as_standard(const char *name, void (*start)(void))
{
    int c, s;
    pair(&c, &s);
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(s, 0);
        dup2(s, 1);
        close(s);
        close(c);
        start();
        _exit(99);
    }
    close(s);
    write(c, "one\ntwo\n", 8);
    finish(name, pid, c);
}

static void by_execl(void) { execl("/bin/cat", "cat", "-n", "-", (char *)NULL); }
static void by_execlp(void)
{
    execlp("sh", "sh", "-c", "read a; read b; echo $b $a $1 $2 $3 $4 $5 $6; exit 3", "sh", "1", "2", "3", "4", "5", "6", (char *)NULL);
}
static void by_execle(void)
{
    char *environment[] = { "WORD=set", NULL };
    execle("/bin/sh", "sh", "-c", "cat; echo $WORD", (char *)NULL, environment);
}
static void by_own_stdio(void) { execl(self, self, "child", (char *)NULL); }
static void without_exec(void)
{
    char line[100];
    while (fgets(line, sizeof line, stdin))
        printf("had %s", line);
    puts("that was all");
    exit(5);
}

int main(int argc, char **argv)
{
    self = argv[0];
    if (argc > 1) {
        char line[100];
        int n = 0;
        while (fgets(line, sizeof line, stdin))
            printf("%d %s", ++n, line);
        printf("%d lines, fileno %d %d\n", n, fileno(stdin), fileno(stdout));
        return 4;
    }
    listener = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof address;
    if (bind(listener, (void *)&address, len) != 0 || listen(listener, 10) != 0
        || getsockname(listener, (void *)&address, &len) != 0)
        fail("listener");
    streams();
    as_standard("execl", by_execl);
    as_standard("execlp", by_execlp);
    as_standard("execle", by_execle);
    as_standard("stdio after exec", by_own_stdio);
    as_standard("stdio after dup2", without_exec);

    int c, s;
    char line[200];
    pair(&c, &s);
    write(c, "for system\n", 11);
    snprintf(line, sizeof line, "read a <&%d; echo system got \"$a\" >&%d; exit 6", s, s);
    printf("system %d\n", WEXITSTATUS(system(line)));
    close(s);
    show("system", c);

    pair(&c, &s);
    write(c, "for popen\n", 10);
    shutdown(c, SHUT_WR);
    snprintf(line, sizeof line, "cat <&%d; exit 8", s);
    FILE *command = popen(line, "r");
    if (!command)
        fail("popen");
    printf("popen %d\n", fgets(line, sizeof line, command) != NULL && strcmp(line, "for popen\n") == 0);
    printf("pclose %d\n", WEXITSTATUS(pclose(command)));
    close(s);
    show("popen", c);
    printf("no command %d\n", WEXITSTATUS(system("exit 9")));
    puts("done");
    return 0;
}
